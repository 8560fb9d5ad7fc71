"""nano_ki: knowledge insulation, end to end, small enough to read in an afternoon.

Read in this order (README.md says a little more of each file):
    world, render, language    the tabletop, its camera, its words
    fast                       action tokens
    config                     every setting
    vit, decoder               the VLM; it leaves a memory: (K, V) of each layer
    flow, expert               noise -> action; the action expert reads the memory
    model                      two losses and THE DETACH
    episodes                   demonstrations, batches
    train                      train_step is the method; the rest of the file prepares and watches it

Shapes (suffixes and comments use these letters):
    B batch   T prefix tokens   F answer (text or FAST) tokens   H chunk steps   A action dimensions
    N heads   K head size   D VLM width   E expert width   V vocabulary   R flow draws   S picture side
"""
