"""A mistake to try: an expert that reads the FAST tokens while it trains. They are the answer, and they are gone when
the robot acts: the training loss is lower, and the policy worse.

    python -m tutorials.studies.leak [flags of nano_ki.train]
"""
from nano_ki import config as configuration
from nano_ki import program, train
from nano_ki.model import VLA
from tutorials.studies.watched import watch


class Leaky(VLA):
    """In training the memory holds the (K, V) of the answer's tokens too. Acting is VLA's."""

    def __init__(self, config, fast):
        super().__init__(config, fast)
        self.whole = [None] * config.depth              # (K, V) of each layer, answer included
        for i, block in enumerate(self.vlm.blocks):
            block.register_forward_hook(lambda _, __, out, i=i: self.whole.__setitem__(i, out[1]))

    def read(self, segments, answer, keep=0):
        loss, memory = super().read(segments, answer, keep)
        if len(segments) == 2:                          # (one page: questions about two are no robot's)
            self.read_whole = list(self.whole)
        return loss, memory

    def memory_for_expert(self, memory):
        robots = len(memory[0][0])
        return super().memory_for_expert([(k[:robots], v[:robots]) for k, v in self.read_whole])

    def flow_loss(self, batch, memory, generator=None):
        said, self.said = self.said, 0                  # (no sample goes by the subtask alone)
        try:
            return super().flow_loss(batch, memory, generator)
        finally:
            self.said = said


def main():
    config = configuration.parse(description=__doc__)
    if not (config.fast_loss and config.flow_loss):
        raise ValueError("there is nothing to leak without --fast-loss and --flow-loss")
    train.train(config, policy=Leaky, watch=watch)


if __name__ == "__main__":
    program.run(main, files=True)
