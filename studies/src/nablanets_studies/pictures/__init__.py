"""Studies on pictures: super-resolution, classification, segmentation."""
