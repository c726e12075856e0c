"""Differential privacy: clipping, Gaussian noise, its exact accounting, and the ledger of what was released.

**What is promised.** Adjacency is *zero-out*: who took part in a round, and with which weight, is public; what
is protected is the content of one device's updates. Two runs are neighbours if they differ in that each of one device's
encoded updates was replaced by zero: the centre of the range of levels, 127.5 for bytes. (No level is the centre, so no
message says exactly this; the comparison does not need one.) For neighbours, the probabilities of every set of outcomes
differ by at most a factor e^ε, but for δ. To compare two *contents*, rather than content with nothing, halve the noise
multiplier.

- A device takes part at most `participations_max` times in a budget period of `period_rounds` rounds. Periods follow
  each other without overlap: around the border of two, it may take part more often than that within so many rounds.
- No amplification by sampling is claimed: devices come when they are available, which is no random sample.
- k releases with noise multiplier z are exactly one Gaussian release with z/√k, also if each depends on those before.
- The sensitivity of a weighted sum of encoded updates is weight_max · clip_norm · (1 + `ROUNDING_SLACK`). Stochastic
  rounding may lengthen an update a little: devices draw it again until the encoded norm is within that slack.
- Under *group* scope the sum of each group gets noise of its own; a device is in one group a round, so ε is that of one
  release. Under *total* scope the sum over all groups gets noise once.
- The unit is a device in a task. Whoever trains several tasks on the same data adds their exposures.

**What is not.** Whatever reads a sum before the noise (a gate over group means, a histogram of norms) is outside of the
promise, and so is whoever holds the sum before the noise, unless the devices add shares of it. That sums are right
although devices may not clip is for other defences.

Pure: numpy and msgpack, no clock, no I/O, no global randomness.
"""
