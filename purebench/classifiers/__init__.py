"""Classifiers by name: the published ones, RobustBench's architectures (`zoo`), torchvision's, timm's and your own
files. It may import `engine`, `networks`, `embedded`, `assets` and `errors`. Begin reading at `published.robustbench`."""
