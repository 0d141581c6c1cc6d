"""Sampling inside other libraries: imbalanced-learn, scikit-learn, Lightning, Hugging Face and Keras; each imports its library only when used."""
