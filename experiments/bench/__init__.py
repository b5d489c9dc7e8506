"""How fast it is, against what one would write without this project, measured in one run (``make bench``).

Every figure that counts is a ratio of two things that were timed in one run. What ours is compared with is written here
as plainly as a user would: ``views`` against Gymnasium's and MuJoCo's renderers, ``learner`` against the original's
formulation of the network (``original``), ``training`` against both together (``naive``).
"""
