# An image with core-agent and PyTorch's default build, which serves CPUs and NVIDIA GPUs:
#     docker build -t core-agent .
# With another build of PyTorch, such as the smaller one for CPUs alone:
#     docker build -t core-agent:cpu --build-arg TORCH_INDEX=ADDRESS .
# ADDRESS is the package index that https://pytorch.org/get-started/locally names for that build.
# Its steps are those of the Makefile.
FROM debian:12-slim

# A further index in which pip looks for PyTorch.
ARG TORCH_INDEX=

# MuJoCo renders off-screen with EGL: by Mesa, or by the driver of an NVIDIA GPU.
ENV MUJOCO_GL=egl \
    NVIDIA_DRIVER_CAPABILITIES=all \
    PATH=/opt/core-agent/.venv/bin:$PATH

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

# PyTorch is a layer of its own, which a change of the sources leaves as it is.
WORKDIR /opt/core-agent
COPY Makefile constraints.txt ./
RUN PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL="$TORCH_INDEX" make .venv/constraints.txt

COPY . .
RUN PIP_NO_CACHE_DIR=1 make setup gl \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /data
ENTRYPOINT ["core-agent"]
CMD ["--help"]
