"""The reference ResNet and the ways to run it."""
