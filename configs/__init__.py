"""The package's own configs at their published paths: configs/digits.py is --config=digits."""
