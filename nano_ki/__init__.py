"""nano_ki: knowledge insulation, end to end, small enough to read in an afternoon.

Read in this order: world, render, language (the tabletop, its camera, its words), fast (action tokens), config, vit,
decoder (the VLM and its memory), flow, expert, model (two losses and THE DETACH), episodes, train (train_step is the
method; the rest of the file prepares and watches it). README.md says a little more of each file.

Shapes (suffixes and comments use these letters):
    B batch   T prefix tokens   F answer (text or FAST) tokens   H chunk steps   A action dimensions
    N heads   K head size   D VLM width   E expert width   V vocabulary   R flow draws   S picture side
"""
