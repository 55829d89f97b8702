"""Quality of samples: features of images, and distances between sets of them."""
