FROM python:3.13-slim AS build

# EXTRAS=[sandbox] adds the upstream simulator and the embedded servers.
ARG EXTRAS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# `make lock` writes these files. Nothing is installed whose digest they do not name.
COPY deploy/image ./locks
RUN python -m venv /opt/build && python -m venv /opt/harvester \
    && /opt/build/bin/pip install --require-hashes --only-binary :all: -r locks/build.lock \
    && /opt/harvester/bin/pip install --require-hashes --only-binary :all: --compile \
       -r "locks/requirements${EXTRAS:+-sandbox}.lock"
COPY pyproject.toml README.md LICENSE ./
COPY config ./config
COPY worker ./worker
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/harvester/bin/pip install --no-deps --no-index --compile /dist/*.whl \
    && /opt/harvester/bin/pip check

# One image for every process. How its health is checked depends on the process, so that is said
# in docker-compose.yml and deploy/.
FROM python:3.13-slim

ENV PATH=/opt/harvester/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 10001 harvester
COPY --from=build /opt/harvester /opt/harvester

# By number, which is how Kubernetes knows that it is not root.
USER 10001
WORKDIR /home/harvester
STOPSIGNAL SIGTERM
CMD ["harvester", "worker"]
