# flock's image by a container engine: the same content as the image of make release,
# because the same program lays it out. TestDockerfile holds the rest to it.
FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
WORKDIR /src
COPY . .
ARG VERSION=dev
ARG TARGETARCH=amd64
RUN cd lab && go run ./cmd/release root --arch=${TARGETARCH} --version=${VERSION} --out=/rootfs

FROM scratch
COPY --from=build /rootfs/ /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENTRYPOINT ["/usr/local/bin/flock-agent"]
ARG VERSION=dev
ARG REVISION
LABEL org.opencontainers.image.title="flock"
LABEL org.opencontainers.image.description="A Kubernetes CNI for bare-metal clusters with real routers"
LABEL org.opencontainers.image.url="https://flock.fritzlab.net/flock"
LABEL org.opencontainers.image.documentation="https://flock.fritzlab.net/flock"
LABEL org.opencontainers.image.licenses="Apache-2.0 AND GPL-2.0-or-later"
LABEL org.opencontainers.image.version="${VERSION}"
LABEL org.opencontainers.image.revision="${REVISION}"
