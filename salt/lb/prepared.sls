# A load balancer needs no other host than the certificate authority: masters may come later.
include:
  - lb
