# /etc/perdition/popmap.re
^boss@example\.org$: mail-2.example.org
@gold\.example$: mail-2.example.org
