"""What reports say in more than one of these tests."""

FAR = "Steps that are left out lie far apart; where the picture changes too much, take more steps or a preset."
ONE_STEP = "a run of one step has nothing to leave out, and a node that samples step by step starts a new run at each"
