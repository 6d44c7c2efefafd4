"""Systems for yes/no attributes of faces: MOON, FaceTracer, PANDA, LNets+ANet, and what they share."""
