# llama-server with plans on a CPU. How to build and run it: docs/containers.md
FROM debian:12 AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ git make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /kvtuner
COPY . .
# torch is for tuning, which a server does not do: what is small takes its place
RUN make CPU=all TORCH=numpy build/cpu-all/.built

FROM debian:12-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libstdc++6 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /kvtuner/build/cpu-all/bin /opt/kvtuner
ENV LD_LIBRARY_PATH=/opt/kvtuner
USER 1000
EXPOSE 8080
ENTRYPOINT ["/opt/kvtuner/llama-server", "--host", "0.0.0.0", "--port", "8080"]
