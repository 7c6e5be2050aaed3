# docker build -t pdo-sphere . && mkdir -p data results && docker run --rm -v "$PWD/results:/home/pdo/pdo-sphere/results" \
#     -v "$PWD/data:/home/pdo/pdo-sphere/data" pdo-sphere
# The environment is what `make env` makes from the lock file; what runs is `make all`. See docs/scaling.md.
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 pdo
USER pdo
WORKDIR /home/pdo/pdo-sphere

# First what the environment is made from: it is made again only if that changes.
COPY --chown=pdo Makefile requirements.lock requirements-torch.txt ./
RUN make env

COPY --chown=pdo . .
RUN mkdir -p data results

ENTRYPOINT ["make"]
CMD ["all"]
