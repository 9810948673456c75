include:
  - ca
