# Two images of one file:
#   docker build --target node   -t inference-swarm:node .      serves layers; no torch (docs/install.md)
#   docker build --target client -t inference-swarm:client .    the API and the page, chat, status
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
# A compiler for the kernels in node/native, which are built with the package; it stays in this stage.
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt ./
# As scripts/setup has them: nothing is resolved.
RUN python -m venv /opt/swarm \
 && sed -n '/^# --- client$/,/^# ---/{/^[^#]/p}; /^# --- http$/,/^# ---/{/^[^#]/p}' constraints.txt > pins.txt \
 && /opt/swarm/bin/pip install --no-cache-dir --no-deps -r pins.txt
COPY pyproject.toml setup.py README.md LICENSE ./
COPY protocol protocol
COPY node node
COPY swarm swarm
RUN /opt/swarm/bin/pip install --no-cache-dir --no-deps . \
 && /opt/swarm/bin/python -m node.native.load \
 && /opt/swarm/bin/pip uninstall -y -q pip

FROM python:${PYTHON}-slim AS client
COPY --from=build /opt/swarm /opt/swarm
# A user of its own, whose files are all in /data: keys, what is fetched, which swarm was entered last.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin swarm \
 && install -d -o 10001 -g 10001 -m 0700 /data
ENV PATH=/opt/swarm/bin:$PATH HOME=/data SWARM_HOME=/data PYTHONUNBUFFERED=1
WORKDIR /data
VOLUME /data
USER 10001
EXPOSE 8080/tcp
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=3)"]
# Others than this container reach it only by --host 0.0.0.0 and a key (SWARM_API_KEY, or --key-file).
ENTRYPOINT ["swarm"]
CMD ["serve"]

FROM client AS node
EXPOSE 4001/udp
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["python", "-c", "import urllib.request as u; assert b'swarm_node_serving 1.0' in u.urlopen('http://127.0.0.1:9464/metrics', timeout=3).read()"]
CMD ["node", "--listen", "/ip4/0.0.0.0/udp/4001/quic-v1", "--metrics", "9464"]
