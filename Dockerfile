FROM python:3.13-slim AS build

# EXTRAS=[sandbox] adds the upstream simulator and the embedded servers.
ARG EXTRAS=""
RUN python -m venv /opt/harvester
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY config ./config
COPY worker ./worker
RUN /opt/harvester/bin/pip install --no-cache-dir --compile ".${EXTRAS}"

# One image for every process; what it runs decides how its health is checked, so that stands in
# docker-compose.yml and deploy/, not here.
FROM python:3.13-slim

ENV PATH=/opt/harvester/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 10001 harvester
COPY --from=build /opt/harvester /opt/harvester

# By number, which is how Kubernetes knows that it is not root.
USER 10001
WORKDIR /home/harvester
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "worker.app", "worker", "--loglevel=INFO"]
