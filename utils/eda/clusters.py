"""Clusters of features beside the classes."""

from utils.pretrained import pretrained_classes


def cluster_counts(arch: str, num_classes: int) -> dict[int, str]:
    """Say how many clusters to look for, and why: number → reason.

    As many as there are classes. For conv_net, as in the original study, also as many as it was pretrained on; other
    networks were pretrained on 1,000 classes or more, too many to look at.
    """
    reasons = {num_classes: "one for each class"}
    if arch == "conv_net":
        reasons.setdefault(len(pretrained_classes(arch)), "one for each fruit that conv_net was pretrained on")
    return dict(sorted(reasons.items()))
