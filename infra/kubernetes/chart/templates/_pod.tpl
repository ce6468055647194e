{{- define "reprieve.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "reprieve.serviceAccount" -}}
{{ default .Release.Name .Values.serviceAccount.existing }}
{{- end }}

{{- define "reprieve.pod" -}}
metadata:
  labels:
    {{- include "reprieve.labels" . | nindent 4 }}
spec:
  serviceAccountName: {{ include "reprieve.serviceAccount" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  restartPolicy: {{ eq .Values.kind "Job" | ternary "Never" "Always" }}
  terminationGracePeriodSeconds: {{ .Values.graceSeconds }}
  shareProcessNamespace: false
  {{- if .Values.user }}
  securityContext:
    runAsNonRoot: true
    runAsUser: {{ .Values.user }}
    runAsGroup: {{ .Values.user }}
    fsGroup: {{ .Values.user }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: job
      image: {{ printf "%s:%s" .Values.image.repository .Values.image.tag | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      {{- with .Values.args }}
      args:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      env:
        {{- with .Values.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        - name: REPRIEVE_STORE
          value: {{ .Values.store | quote }}
        - name: REPRIEVE_JOB
          {{- if eq .Values.kind "StatefulSet" }}
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
          {{- else }}
          value: {{ default .Release.Name .Values.job | quote }}
          {{- end }}
        - name: REPRIEVE_TERM_GRACE
          value: {{ printf "%ds" (int .Values.graceSeconds) | quote }}
        - name: REPRIEVE_METRICS_LISTEN
          value: 0.0.0.0:9184
        {{- if not (hasKey .Values.settings "REPRIEVE_SOURCES") }}
        - name: REPRIEVE_SOURCES
          value: none
        {{- end }}
        {{- if .Values.keySecret }}
        - name: REPRIEVE_KEY_FILE
          value: /run/secrets/reprieve/key
        {{- end }}
        {{- range $name, $value := .Values.settings }}
        - name: {{ $name }}
          value: {{ $value | quote }}
        {{- end }}
      ports:
        - name: status
          containerPort: 9184
      livenessProbe:
        httpGet:
          path: /healthz
          port: status
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet:
          path: /readyz
          port: status
        periodSeconds: 5
        timeoutSeconds: 5
      {{- with .Values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        # The file capabilities of an image without root count only where privileges may be gained.
        allowPrivilegeEscalation: {{ ne (int .Values.user) 0 }}
        capabilities:
          drop: [ALL]
          add: [CHECKPOINT_RESTORE, SYS_PTRACE{{ if .Values.user }}, SETPCAP{{ end }}]
        seccompProfile:
          type: Unconfined
      {{- if or .Values.volume.enabled .Values.keySecret }}
      volumeMounts:
        {{- if .Values.volume.enabled }}
        - name: snapshots
          mountPath: /snapshots
        {{- end }}
        {{- if .Values.keySecret }}
        - name: key
          mountPath: /run/secrets/reprieve
          readOnly: true
        {{- end }}
      {{- end }}
  {{- if or .Values.volume.enabled .Values.keySecret }}
  volumes:
    {{- if .Values.volume.enabled }}
    - name: snapshots
      persistentVolumeClaim:
        claimName: {{ default (printf "%s-snapshots" .Release.Name) .Values.volume.existingClaim }}
    {{- end }}
    {{- if .Values.keySecret }}
    - name: key
      secret:
        secretName: {{ .Values.keySecret }}
        defaultMode: 0400
    {{- end }}
  {{- end }}
{{- end }}
