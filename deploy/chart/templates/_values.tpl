{{- /*
How the values get into the objects. Each template changes its object in place and prints
nothing.
*/}}

{{- /* (root, pod template): what all of flock's pods have. */}}
{{- define "flock.pod" }}
{{- $root := index . 0 }}{{ $pod := (index . 1).spec }}
{{- with $root.Values.imagePullSecrets }}{{ $_ := set $pod "imagePullSecrets" . }}{{ end }}
{{- range concat ($pod.initContainers | default list) $pod.containers }}
{{- if eq .image "flock:dev" }}{{ $_ := set . "image" (include "flock.image" $root) }}{{ end }}
{{- if $root.Values.image.pullPolicy }}{{ $_ := set . "imagePullPolicy" $root.Values.image.pullPolicy }}{{ end }}
{{- end }}
{{- end }}

{{- /* (root, DaemonSet) */}}
{{- define "flock.daemonSet" }}
{{- $root := index . 0 }}{{ $ds := index . 1 }}{{ $values := $root.Values }}
{{- $_ := set $ds.spec.updateStrategy.rollingUpdate "maxUnavailable" $values.maxUnavailable }}
{{- $meta := $ds.spec.template.metadata }}{{ $pod := $ds.spec.template.spec }}
{{- $_ := set $meta "labels" (merge $meta.labels ($values.podLabels | default dict)) }}
{{- $_ := set $meta "annotations" (merge $meta.annotations ($values.podAnnotations | default dict)) }}
{{- range $field := list "nodeSelector" "tolerations" "priorityClassName" }}
{{- $_ := set $pod $field (index $values $field) }}
{{- end }}
{{- with $values.affinity }}{{ $_ := set $pod "affinity" . }}{{ end }}
{{- if $values.seLinuxOptions }}{{ $_ := set $pod.securityContext "seLinuxOptions" $values.seLinuxOptions }}
{{- else }}{{ $_ := unset $pod.securityContext "seLinuxOptions" }}{{ end }}
{{- with $values.agent.otlpCA }}{{ if .configMap }}
{{- $items := list (dict "key" .key "path" "ca.crt") }}
{{- $_ := set $pod "volumes" (append $pod.volumes (dict "name" "otlp-ca" "configMap" (dict "name" .configMap "items" $items "optional" true))) }}
{{- end }}{{ end }}
{{- $paths := dict "cni-bin" $values.paths.cniBin "cni-conf" $values.paths.cniConf "pods-api" $values.paths.podsAPI "runtime" $values.paths.runtime }}
{{- range $pod.volumes }}
{{- if hasKey $paths .name }}{{ $_ := set .hostPath "path" (index $paths .name) }}{{ end }}
{{- end }}
{{- range concat $pod.initContainers $pod.containers }}
{{- $_ := set . "resources" (index $values .name).resources }}
{{- if eq .name "agent" }}{{ include "flock.agent" (list $root .) }}{{ end }}
{{- if and $values.realtimePriority (has .name (list "agent" "bird")) }}
{{- $flag := printf "--realtime-priority=%d" (int $values.realtimePriority) }}
{{- if eq .name "bird" }}{{ $_ := set . "command" (concat (list (first .command) $flag) (rest .command)) }}
{{- else }}{{ $_ := set . "args" (prepend (.args | default list) $flag) }}{{ end }}
{{- $_ := set .securityContext.capabilities "add" (append .securityContext.capabilities.add "SYS_NICE") }}
{{- end }}
{{- end }}
{{- end }}

{{- /* (root, the agent's container). Flags that have their default are left out. */}}
{{- define "flock.agent" }}
{{- $values := (index . 0).Values }}{{ $agent := index . 1 }}
{{- $args := list }}
{{- range $agent.args }}
{{- if not (hasPrefix "--metrics-address=" .) }}{{ $args = append $args . }}{{ end }}
{{- end }}
{{- if $values.metrics.address }}
{{- $args = append $args (printf "--metrics-address=%s" $values.metrics.address) }}
{{- range $agent.ports }}{{ $_ := set . "containerPort" (include "flock.port" $values.metrics.address | int) }}{{ end }}
{{- else }}
{{- $_ := unset $agent "ports" }}
{{- end }}
{{- if ne $values.agent.healthAddress "127.0.0.1:9479" }}{{ $args = append $args (printf "--health-address=%s" $values.agent.healthAddress) }}{{ end }}
{{- if ne $values.agent.logLevel "info" }}{{ $args = append $args (printf "--log-level=%s" $values.agent.logLevel) }}{{ end }}
{{- if ne $values.agent.logFormat "text" }}{{ $args = append $args (printf "--log-format=%s" $values.agent.logFormat) }}{{ end }}
{{- with $values.agent.otlpEndpoint }}{{ $args = append $args (printf "--otlp-endpoint=%s" .) }}{{ end }}
{{- $_ := unset $agent "args" }}
{{- with concat $args ($values.agent.extraArgs | default list) }}{{ $_ := set $agent "args" . }}{{ end }}
{{- $env := $agent.env }}
{{- with $values.apiServer.host }}{{ $env = append $env (dict "name" "KUBERNETES_SERVICE_HOST" "value" .) }}{{ end }}
{{- with $values.apiServer.port }}{{ $env = append $env (dict "name" "KUBERNETES_SERVICE_PORT" "value" (toString .)) }}{{ end }}
{{- /* Optional: what traces lack must not keep the agent from its start. */}}
{{- with $values.agent.otlpHeaders }}{{ if .secret }}
{{- $ref := dict "name" .secret "key" .key "optional" true }}
{{- $env = append $env (dict "name" "OTEL_EXPORTER_OTLP_TRACES_HEADERS" "valueFrom" (dict "secretKeyRef" $ref)) }}
{{- end }}{{ end }}
{{- if ne $values.agent.otlpCompression "none" }}{{ $env = append $env (dict "name" "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION" "value" $values.agent.otlpCompression) }}{{ end }}
{{- if $values.agent.otlpCA.configMap }}
{{- $env = append $env (dict "name" "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE" "value" "/etc/flock/otlp/ca.crt") }}
{{- $_ := set $agent "volumeMounts" (append $agent.volumeMounts (dict "name" "otlp-ca" "mountPath" "/etc/flock/otlp" "readOnly" true)) }}
{{- end }}
{{- $_ := set $agent "env" $env }}
{{- end }}

{{- /* (root, Deployment) */}}
{{- define "flock.controller" }}
{{- $values := (index . 0).Values }}{{ $d := index . 1 }}{{ $c := index $d.spec.template.spec.containers 0 }}
{{- $_ := set $d.spec "replicas" $values.controller.replicas }}
{{- $_ := set $c "resources" $values.controller.resources }}
{{- $args := list }}
{{- $ports := list }}
{{- range $c.ports }}
{{- if ne (int .containerPort) 9482 }}{{ $ports = append $ports . }}
{{- else if $values.metrics.controllerAddress }}
{{- $_ := set . "containerPort" (include "flock.port" $values.metrics.controllerAddress | int) }}{{ $ports = append $ports . }}
{{- $args = append $args (printf "--metrics-address=%s" $values.metrics.controllerAddress) }}
{{- end }}
{{- end }}
{{- $_ := set $c "ports" $ports }}
{{- $_ := unset $c "args" }}
{{- if $values.controller.withoutClass }}{{ $args = append $args "--without-class" }}{{ end }}
{{- if ne $values.agent.logLevel "info" }}{{ $args = append $args (printf "--log-level=%s" $values.agent.logLevel) }}{{ end }}
{{- if ne $values.agent.logFormat "text" }}{{ $args = append $args (printf "--log-format=%s" $values.agent.logFormat) }}{{ end }}
{{- with concat $args ($values.controller.extraArgs | default list) }}{{ $_ := set $c "args" . }}{{ end }}
{{- $env := $c.env }}
{{- with $values.apiServer.host }}{{ $env = append $env (dict "name" "KUBERNETES_SERVICE_HOST" "value" .) }}{{ end }}
{{- with $values.apiServer.port }}{{ $env = append $env (dict "name" "KUBERNETES_SERVICE_PORT" "value" (toString .)) }}{{ end }}
{{- $_ := set $c "env" $env }}
{{- end }}

{{- define "flock.port" }}{{ regexFind "[0-9]+$" . }}{{ end }}
