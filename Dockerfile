# imap-porter: `docker build -t imap-porter .`, then a settings file at /etc/imap-porter/porter.yaml:
#
#   docker run --read-only --tmpfs /tmp --cap-drop ALL -p 993:1993 -v ./config:/etc/imap-porter:ro imap-porter
#
# The steps are plain commands with $PREFIX and $WHEELS for their places, so that a test can run them elsewhere.

FROM python:3.13-slim AS build
ENV PREFIX=/opt/imap-porter WHEELS=/wheels
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY proxy proxy
RUN python3 -m pip wheel --quiet --no-cache-dir --no-deps --wheel-dir $WHEELS .
RUN python3 -m venv --without-pip $PREFIX
RUN python3 -m pip --python $PREFIX/bin/python3 install --quiet --no-cache-dir --no-compile $WHEELS/*.whl
# Compiled here, since nothing can be written at run time; but for files that are written for a later Python.
RUN $PREFIX/bin/python3 -m compileall -q -j 0 -x '_py_3[0-9]+_' $PREFIX/lib

FROM python:3.13-slim
COPY --from=build /opt/imap-porter /opt/imap-porter
ENV PATH=/opt/imap-porter/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 1993 1143 9142 9143
# The master drains: readiness is gone at once, sessions end at safe points, and it exits with 0.
STOPSIGNAL SIGTERM
# Asks the running proxy over `admin.socket`; Kubernetes asks /livez and /readyz in its place.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["imap-porter", "status", "--json"]
ENTRYPOINT ["imap-porter"]
CMD ["serve", "-c", "/etc/imap-porter/porter.yaml"]
