{{- define "fedpipe.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "fedpipe.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: serving
{{- end }}

{{- define "fedpipe.labels" -}}
{{ include "fedpipe.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* An image by digest, or by tag where that is allowed; the argument is a list of the root, the name, tag and digest. */}}
{{- define "fedpipe.pinned" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $tag := index . 2 -}}{{- $digest := index . 3 -}}
{{- if $digest -}}
{{ $name }}@{{ $digest }}
{{- else if and $root.Values.requireDigests (not (contains "@sha256:" $name)) -}}
{{ fail (printf "the image %s has no digest, and requireDigests is true: set its digest, sha256:..." $name) }}
{{- else -}}
{{ $name }}{{ with $tag }}:{{ . }}{{ end }}
{{- end }}
{{- end }}

{{- define "fedpipe.image" -}}
{{ include "fedpipe.pinned" (list . .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) .Values.image.digest) }}
{{- end }}

{{/* The Secret with the token of the server; empty when clients need none. */}}
{{- define "fedpipe.tokenSecret" -}}
{{- if .Values.serving.tokenSecret }}{{ .Values.serving.tokenSecret }}
{{- else if not .Values.serving.anonymous }}{{ include "fedpipe.name" . }}-token
{{- end }}
{{- end }}

{{/* The host in the endpoint of store.uri, with its port if it has one; empty without an endpoint. */}}
{{- define "fedpipe.storeAddress" -}}
{{- $found := regexFind "endpoint=[^&]+" .Values.store.uri | trimPrefix "endpoint=" | replace "%3A" ":" | replace "%3a" ":" | replace "%2F" "/" | replace "%2f" "/" -}}
{{- regexReplaceAll "/.*$" (regexReplaceAll "^https?://" $found "") "" -}}
{{- end }}

{{/* The host in the endpoint of store.uri; empty when it has none. */}}
{{- define "fedpipe.storeHost" -}}
{{- regexReplaceAll ":[0-9]+$" (include "fedpipe.storeAddress" .) "" -}}
{{- end }}

{{/* The peers of the store, as a NetworkPolicy names them; none for a store outside the cluster that nobody names. */}}
{{- define "fedpipe.storePeers" -}}
{{- $host := include "fedpipe.storeHost" . -}}
{{- if .Values.egress.store -}}
{{ toYaml .Values.egress.store }}
{{- else if and .Values.trialStore.enabled (hasPrefix (printf "%s-store" (include "fedpipe.name" .)) $host) -}}
- podSelector:
    matchLabels: {app.kubernetes.io/instance: {{ .Release.Name }}, app.kubernetes.io/component: store}
{{- else if regexMatch "^[0-9]+(\\.[0-9]+){3}$" $host -}}
- ipBlock: {cidr: {{ $host }}/32}
{{- else if regexMatch "^[a-z0-9-]+$" $host -}}
- podSelector: {}
{{- else if regexMatch "^[a-z0-9-]+\\.[a-z0-9-]+(\\.svc(\\.[a-z0-9.-]+)?)?$" $host -}}
- namespaceSelector:
    matchLabels: {kubernetes.io/metadata.name: {{ index (splitList "." $host) 1 }}}
{{- end }}
{{- end }}

{{/* Rules for the store and DNS, and more of them; the argument is a list of the root and the store's ports. */}}
{{- define "fedpipe.egress" -}}
{{- $root := index . 0 -}}
- to:  # DNS
    {{- if not $root.Values.egress.dns }}{{ fail "egress.dns is needed: peers of the cluster's DNS" }}{{ end }}
    {{- toYaml $root.Values.egress.dns | nindent 4 }}
  ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- $ports := index . 1 }}
{{- with include "fedpipe.storePeers" $root | trim }}
- to:  # the store
    {{- . | nindent 4 }}
  ports:
    {{- $open := list (regexFind ":[0-9]+$" (include "fedpipe.storeAddress" $root) | trimPrefix ":") }}
    {{- range required "the ports of the store are needed, in storePorts" $ports }}{{ $open = append $open (toString .) }}{{ end }}
    {{- range uniq (without $open "") }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
{{- with $root.Values.egress.more }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The peers of Kubernetes' API: the given ones, or the addresses that the cluster lists; none without a cluster. */}}
{{- define "fedpipe.apiPeers" -}}
{{- if .Values.federationPolicy.apiServer -}}
{{ toYaml .Values.federationPolicy.apiServer }}
{{- else -}}
{{- range (lookup "discovery.k8s.io/v1" "EndpointSlice" "default" "kubernetes").endpoints }}
{{- range .addresses }}
- ipBlock: {cidr: {{ . }}/{{ ternary "128" "32" (contains ":" .) }}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "fedpipe.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (printf "%s-serving" (include "fedpipe.name" .)) }}
{{- end }}

{{/* The settings that Pod Security's "restricted" requires of a container. */}}
{{- define "fedpipe.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "fedpipe.options" -}}
- --host=0.0.0.0
- --port=8080
- --poll={{ .Values.serving.poll }}
- --sessions={{ .Values.serving.sessions }}
- --threads={{ .Values.serving.threads }}
- --batch={{ .Values.serving.batch }}
- --batch-delay={{ .Values.serving.batchDelay }}
- --body-limit={{ .Values.serving.bodyLimit }}
- --json-limit={{ .Values.serving.jsonLimit }}
- --memory-limit={{ .Values.serving.memoryLimit }}
- --timeout={{ .Values.serving.timeout }}
- --drain={{ .Values.serving.drain }}
{{- if not .Values.serving.accessLog }}
- --no-access-log
{{- end }}
{{- end }}

{{/* Labels of the objects for a federation's runs; the argument is a list of the root and the part. */}}
{{- define "fedpipe.partLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{- define "fedpipe.coreImage" -}}
{{ include "fedpipe.pinned" (list . .Values.bucket.image (.Values.image.tag | default .Chart.AppVersion) .Values.bucket.digest) }}
{{- end }}

{{- define "fedpipe.subjects" -}}
{{- range .Values.federation.operators }}
- kind: {{ .kind }}
  name: {{ .name }}
  {{- if eq .kind "ServiceAccount" }}
  namespace: {{ .namespace | default $.Release.Namespace }}
  {{- else }}
  apiGroup: rbac.authorization.k8s.io
  {{- end }}
{{- end }}
{{- end }}

{{/* Whether the chart's own Deployment serves; KServe's objects do otherwise. */}}
{{- define "fedpipe.serves" -}}
{{- if and .Values.serving.enabled (not .Values.kserve.enabled) }}true{{ end }}
{{- end }}
