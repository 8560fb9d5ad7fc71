"""nano_ki: knowledge insulation, end to end, small enough to read in an afternoon.

README.md has a map of the files in reading order. In a hurry: flow, expert, model (two losses and THE STOP-GRADIENT),
then train_step in train.

Shapes (comments use these letters; fast.py alone has D for action dimensions and A for its alphabet):
    B batch   T prefix tokens   F answer tokens (words, FAST)   H chunk steps   A action dimensions
    N heads   K head size   D VLM width   E expert width   V vocabulary   R flow draws   S picture side
"""
