"""The interpretable CNN (Zhang, Wu and Zhu, CVPR 2018): its network, templates, place in a backbone, filter losses."""
