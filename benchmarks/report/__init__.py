"""Tables and charts made from the recorded results."""
