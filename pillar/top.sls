# Every minion gets its own view of the cluster, by its id; a host that is not declared gets nothing.
base:
  '*':
    - view
