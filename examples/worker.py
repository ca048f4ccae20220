#!/usr/bin/env python3
"""A worker in 30 lines of plain HTTP/1.1 and JSON. Usage: worker.py [SERVER]. It runs what it is sent: use your own mesh."""
import base64, json, subprocess, sys, urllib.request, uuid
server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7101"
me = {"worker": "python-" + uuid.uuid4().hex[:6], "session": str(uuid.uuid4())}
offer = {"cpu": 1, "memoryMib": "512", "runtimes": ["exec"]}
def call(method, **fields):
    url, body = f"{server}/isobar.v1.WorkerService/{method}", json.dumps({**me, **fields}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=60))
def run(task, lease):
    payload, process = base64.b64decode(task.get("payload", "")), None
    env = {**task.get("env", {}), "PATH": "/usr/local/bin:/usr/bin:/bin", "ISOBAR_TASK_ID": task["taskId"],
           "ISOBAR_ATTEMPT": task["attempt"], "TRACEPARENT": task.get("traceparent", "")}
    while call("Extend", leases=[lease])["results"][0].get("confirmed"):  # the attempt may start, or go on
        process = process or subprocess.Popen(task["variant"]["command"], env=env, stdin=-1, stdout=-1, stderr=-1)
        try:
            return report(lease, *process.communicate(payload, timeout=2), process.returncode)
        except subprocess.TimeoutExpired:
            payload = None  # it has been given
    if process:  # the lease is another's, or the function's timeout is over
        process.kill()
def report(lease, out, err, code):
    status = {0: "done", 75: "retry"}.get(code, "failed")
    outcome = {"status": status, "exitCode": code, "stderrTail": base64.b64encode(err[-4096:]).decode(),
               "result": base64.b64encode(out if status == "done" else b"").decode()}
    print(lease["taskId"], status, call("Complete" if status == "done" else "Fail", lease=lease, outcome=outcome)["verdict"], flush=True)
while True:
    for task in call("Lease", requestId=str(uuid.uuid4()), offer=offer, wait="10s").get("assignments", []):
        run(task, {"taskId": task["taskId"], "attempt": task["attempt"]})
