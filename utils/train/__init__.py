"""What train.ipynb needs."""
