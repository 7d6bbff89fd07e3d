{{- define "porter.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "porter.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "porter.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "porter.selector" -}}
app.kubernetes.io/name: {{ include "porter.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "porter.labels" -}}
{{ include "porter.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "porter.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "porter.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{/* The seconds of a duration of the settings, such as 90s or 1500ms, rounded up. */}}
{{- define "porter.seconds" -}}
{{- $units := dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0 -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9]+" $text -}}
{{- $unit := trimPrefix $number $text | trim -}}
{{- if not (and $number (hasKey $units $unit)) -}}
{{- fail (printf "settings.timeouts: %q is no duration such as 30s" $text) -}}
{{- end -}}
{{- mulf (float64 $number) (get $units $unit) | ceil | int -}}
{{- end }}

{{/* How long a pod needs to end: the listeners' grace, the drain, and a margin to say goodbye in. */}}
{{- define "porter.leave" -}}
{{- $timeouts := default dict .Values.settings.timeouts -}}
{{- $grace := include "porter.seconds" (default "0s" $timeouts.drain_grace) | int -}}
{{- $drain := include "porter.seconds" (default "30s" $timeouts.drain) | int -}}
{{- add $grace $drain 15 -}}
{{- end }}

{{- define "porter.terminationGracePeriodSeconds" -}}
{{- $least := include "porter.leave" . | int -}}
{{- $given := .Values.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $given -}}
{{- $least -}}
{{- else if lt (int $given) $least -}}
{{- fail (printf "terminationGracePeriodSeconds: %d is less than settings.timeouts.drain_grace + drain + 15 seconds = %d: sessions would be cut; leave it null, or shorten the drain" (int $given) $least) -}}
{{- else -}}
{{- int $given -}}
{{- end -}}
{{- end }}

{{/* The port of an address such as [::]:993. */}}
{{- define "porter.port" -}}
{{- regexFind "[0-9]+$" . -}}
{{- end }}

{{/*
The readiness probe. With externalTrafficPolicy: Local a node whose only pod is ending gets clients until balancers know,
and kube-proxy lets them through while that pod counts as ready: so it does for as long as drain_grace has it serve.
*/}}
{{- define "porter.readinessProbe" -}}
{{- $probe := deepCopy .Values.readinessProbe -}}
{{- if not $probe.failureThreshold -}}
{{- $timeouts := default dict .Values.settings.timeouts -}}
{{- $grace := include "porter.seconds" (default "0s" $timeouts.drain_grace) | int -}}
{{- $period := default 10 $probe.periodSeconds | int -}}
{{- $_ := set $probe "failureThreshold" (max 2 (add 1 (div (sub (add $grace $period) 1) $period))) -}}
{{- end -}}
{{- toYaml $probe -}}
{{- end }}

{{/* Something where an address can be reached from its own pod only. */}}
{{- define "porter.loopback" -}}
{{- if or (hasPrefix "127." .) (hasPrefix "[::1]" .) -}}yes{{- end -}}
{{- end }}

{{/* That the listeners have a port: (dict "settings" … "port" … "what" "service.ports.imaps"). */}}
{{- define "porter.requirePort" -}}
{{- $found := list -}}
{{- range .settings.listeners -}}
{{- $found = append $found (include "porter.port" .address) -}}
{{- end -}}
{{- if not (has (toString .port) $found) -}}
{{- fail (printf "%s: no listener of the settings has port %v; they have %s" .what .port (join ", " $found)) -}}
{{- end -}}
{{- end }}

{{/* What the schema cannot say. */}}
{{- define "porter.check" -}}
{{- $settings := .Values.settings -}}
{{- $backends := default dict $settings.backends -}}
{{- if and (empty $backends.servers) (empty $backends.discovery) -}}
{{- fail "settings.backends: name the mail servers, by servers: [{name: ..., url: ...}] or by discovery: {dns: ...}" -}}
{{- end -}}
{{- if not (dig "admin" "address" "" $settings) -}}
{{- fail "settings.admin.address: the pod's probes ask there; set e.g. \"[::]:9143\"" -}}
{{- end -}}
{{- if $settings.user -}}
{{- fail "settings.user: the pod runs as podSecurityContext.runAsUser from its beginning; leave it out" -}}
{{- end -}}
{{- if dig "name" "" (default dict $settings.fleet) -}}
{{- fail "settings.fleet.name: all pods would have it, and refuse each other; leave it out: each has its own" -}}
{{- end -}}
{{- $address := $settings.admin.address -}}
{{- if include "porter.loopback" $address -}}
{{- fail (printf "settings.admin.address: the kubelet cannot reach %s; set e.g. \"[::]:9143\"" $address) -}}
{{- end -}}
{{- $scraped := dig "metrics" "address" "" $settings -}}
{{- if and $scraped (include "porter.loopback" $scraped) -}}
{{- fail (printf "settings.metrics.address: nobody outside the pod can reach %s; set e.g. \"[::]:9142\"" $scraped) -}}
{{- end -}}
{{- range $name, $port := .Values.service.ports -}}
{{- if has $name (list "admin" "metrics" "websocket") -}}
{{- fail (printf "service.ports.%s: the pods have another port of that name" $name) -}}
{{- end -}}
{{- include "porter.requirePort" (dict "settings" $settings "port" $port.targetPort "what" (printf "service.ports.%s.targetPort" $name)) -}}
{{- end -}}
{{- range $name, $_ := .Values.service.nodePorts -}}
{{- if not (hasKey $.Values.service.ports $name) -}}
{{- fail (printf "service.nodePorts.%s: service.ports has no port of that name" $name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.service.nodePorts (eq .Values.service.type "ClusterIP") -}}
{{- fail "service.nodePorts: belongs to service.type NodePort or LoadBalancer" -}}
{{- end -}}
{{- if .Values.websocketService.enabled -}}
{{- $port := .Values.websocketService.targetPort -}}
{{- include "porter.requirePort" (dict "settings" $settings "port" $port "what" "websocketService.targetPort") -}}
{{- range $settings.listeners -}}
{{- if and (eq (include "porter.port" .address) (toString $port)) (ne (default "imap" .protocol) "websocket") -}}
{{- fail (printf "websocketService.targetPort: the listener at %s is none with protocol: websocket" .address) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (empty .Values.tls.certManager.dnsNames) -}}
{{- fail "tls.certManager.dnsNames: name what clients connect to, e.g. [imap.example.org]" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (empty .Values.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name: name the issuer" -}}
{{- end -}}
{{- if and .Values.hostPorts (ne .Values.kind "DaemonSet") -}}
{{- fail "hostPorts: belongs to kind: DaemonSet" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (ne .Values.kind "Deployment") -}}
{{- fail "autoscaling: belongs to kind: Deployment" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (not .Values.autoscaling.targetCPUUtilizationPercentage) (not .Values.autoscaling.targetSessionsPerPod) -}}
{{- fail "autoscaling: set targetCPUUtilizationPercentage or targetSessionsPerPod" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas: more than autoscaling.maxReplicas" -}}
{{- end -}}
{{- $metrics := .Values.metrics -}}
{{- if and $metrics.serviceMonitor.enabled (or (not $metrics.service) (not (dig "metrics" "address" "" $settings))) -}}
{{- fail "metrics.serviceMonitor: needs metrics.service and settings.metrics.address" -}}
{{- end -}}
{{- end }}
