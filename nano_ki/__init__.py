"""nano_ki: knowledge insulation, end to end, small enough to read in an afternoon.

Read in this order:
    config      every setting                     decoder   the VLM; leaves a memory of (K, V)
    world       the tabletop and its expert       flow      noise -> action
    render      the camera                        expert    reads the memory, predicts velocities
    language    words, questions, commands        model     the two losses and THE DETACH
    fast        action tokens                     probe     which loss reaches which weights
    episodes    demonstrations, batches           pretrain  makes the VLM
    vit         picture -> tokens                 train, evaluate (draw: pictures for people)

Shapes (suffixes and comments use these letters):
    B batch   T prefix tokens   F answer (text or FAST) tokens   H chunk steps   A action dimensions
    N heads   K head size   D VLM width   E expert width   V vocabulary   R flow draws   S picture side
"""
