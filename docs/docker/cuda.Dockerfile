# llama-server with plans on NVIDIA. How to build and run it: docs/containers.md
ARG CUDA=13.0.1
ARG SYSTEM=ubuntu24.04
FROM nvidia/cuda:${CUDA}-devel-${SYSTEM} AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ git make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /kvtuner
COPY . .
# with CPU=all it is for all kinds of GPUs, too, as there is none to look at; torch is for tuning, which a server does
# not do: what is small takes its place
RUN make BACKEND=cuda CPU=all TORCH=numpy build/cuda-all/.built

FROM nvidia/cuda:${CUDA}-runtime-${SYSTEM}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libstdc++6 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /kvtuner/build/cuda-all/bin /opt/kvtuner
ENV LD_LIBRARY_PATH=/opt/kvtuner:/usr/local/cuda/lib64
USER 1000
EXPOSE 8080
ENTRYPOINT ["/opt/kvtuner/llama-server", "--host", "0.0.0.0", "--port", "8080", "-ngl", "99"]
