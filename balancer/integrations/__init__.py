"""Adaptive sampling inside other libraries: scikit-learn, imbalanced-learn, Lightning, Hugging Face, Keras;
and weights from a service.

Each module imports its library, so import only the one you need.
"""
