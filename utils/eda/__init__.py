"""What EDA.ipynb needs."""
