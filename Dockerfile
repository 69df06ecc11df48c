# flock's image: the same paths as lab/image puts into the lab's, which a test
# holds against this file. BIRD is Debian's.
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd ./cmd
COPY pkg ./pkg
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath \
    -ldflags "-s -w -X flock.fritzlab.net/flock/pkg/version.Version=${VERSION}" \
    -o /out/ ./cmd/flock ./cmd/flock-agent ./cmd/flock-installer ./cmd/flock-slice

FROM debian:12-slim
RUN apt-get update \
 && apt-get install --yes --no-install-recommends bird2 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/flock /usr/local/bin/flock
COPY --from=build /out/flock-agent /usr/local/bin/flock-agent
COPY --from=build /out/flock-installer /usr/local/bin/flock-installer
COPY --from=build /out/flock-slice /usr/local/bin/flock-slice
COPY deploy/bird.conf /etc/flock/bird.conf
ENTRYPOINT ["/usr/local/bin/flock-agent"]
