"""What the four notebooks share; ``from utils.datasets import ImageDataset`` shows where a thing lives."""
