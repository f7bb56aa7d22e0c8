{{- define "site.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "site.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "site.labels" -}}
{{ include "site.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "site.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else if and .Values.requireDigests (not (contains "@sha256:" .Values.image.repository)) -}}
{{ fail (printf "the image %s has no digest, and requireDigests is true: set image.digest, sha256:..." .Values.image.repository) }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* site.yaml: the owner's settings, over the words of the invitation, over the places of files in the pod. */}}
{{- define "site.config" -}}
{{- $places := dict "state" "/state/site" "credentials" "/state/site/store" -}}
{{- $invited := dict -}}
{{- if .Values.invitation -}}
{{- $invitation := .Values.invitation | fromYaml -}}
{{- if hasKey $invitation "Error" }}{{ fail "invitation is not the file that `fedpipe invite` wrote" }}{{ end -}}
{{- range $key := list "store" "federation" "learner" "administrator" "token" -}}
{{- if not (hasKey $invitation $key) }}{{ fail "invitation is not the file that `fedpipe invite` wrote" }}{{ end -}}
{{- end -}}
{{- $invited = dict "store" $invitation.store "federation" $invitation.federation "name" $invitation.learner "administrator" $invitation.administrator -}}
{{- if $invitation.ca }}{{ $_ := set $places "ca" "/state/site/ca.pem" }}{{ end -}}
{{- else if not .Values.invitationSecret -}}
{{ fail "invitation is needed: --set-file invitation=FILE, or a Secret in invitationSecret" }}
{{- end -}}
{{- range $key, $value := $invited -}}
{{- if and (hasKey $.Values.site $key) (ne (get $.Values.site $key) $value) }}{{ fail (printf "site.%s is not that of the invitation, %s" $key $value) }}{{ end -}}
{{- end -}}
{{- $made := mergeOverwrite $places $invited (deepCopy .Values.site) -}}
{{- range $key := list "store" "federation" "name" "administrator" -}}
{{- if not (hasKey $made $key) }}{{ fail (printf "site.%s is needed, without invitation" $key) }}{{ end -}}
{{- end -}}
{{ toYaml $made }}
{{- end }}

{{/* The ports of the store: the given ones, and those of its endpoint and of a proxy on the way. */}}
{{- define "site.storePorts" -}}
{{- $open := list -}}
{{- range required "the ports of the store are needed, in egress.storePorts" .Values.egress.storePorts }}{{ $open = append $open (toString .) }}{{ end -}}
{{- $urls := list (regexFind "endpoint=https?://[^/&]+" (include "site.config" . | fromYaml).store) -}}
{{- range $name, $value := .Values.env }}{{ if regexMatch "^(?i)(https?|all)_proxy$" $name }}{{ $urls = append $urls (trimSuffix "/" $value) }}{{ end }}{{ end -}}
{{- range without $urls "" }}{{ $open = append $open (regexFind ":[0-9]+$" . | trimPrefix ":" | default (ternary "443" "80" (contains "https://" .))) }}{{ end -}}
{{- uniq (without $open "") | join "," -}}
{{- end }}

{{/* The settings that Pod Security's "restricted" requires of a container. */}}
{{- define "site.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "site.env" -}}
- {name: HOME, value: /tmp}
- {name: FEDPIPE_IMAGE, value: {{ include "site.image" . | quote }}}    # a part of what is approved
{{- range $name, $value := .Values.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- define "site.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: state, mountPath: /state}
- {name: config, mountPath: /etc/fedpipe, readOnly: true}
{{- end }}
