"""What Wu & He, "Group Normalization" (ECCV 2018, arXiv:1803.08494), report.

Validation error in percent of ResNet-50 on ImageNet.
"""

BATCHES = (32, 16, 8, 4, 2)  # images per worker: table 2
BY_BATCH = {"BN": (23.6, 23.7, 24.8, 27.3, 34.7), "GN": (24.1, 24.2, 24.0, 24.2, 24.1)}
AT_32 = {"BN": 23.6, "GN": 24.1, "LN": 25.3, "IN": 28.4}  # table 1
SIZES = (64, 32, 16, 8, 4, 2, 1)  # table 3, at 32 images per worker
BY_GROUPS = (24.6, 24.1, 24.6, 24.4, 24.6, 24.7, 25.3)
BY_CHANNELS = (24.4, 24.5, 24.2, 24.3, 24.8, 25.6, 28.4)  # a group
