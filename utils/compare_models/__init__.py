"""What compare_models.ipynb needs."""
