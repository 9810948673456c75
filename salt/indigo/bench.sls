# The least a state.apply can do: what `make bench` compares a deploy with.
Nothing is to be done:
  test.nop: []
