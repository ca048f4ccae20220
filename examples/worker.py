#!/usr/bin/env python3
"""A worker in 30 lines of plain HTTP and JSON: lease a task, extend, run it, report.

Usage: worker.py [SERVER [TASKS]]     It runs the commands it is sent: point it at your own mesh.
"""
import base64, json, subprocess, sys, time, urllib.request, uuid

server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7101"
left = int(sys.argv[2]) if len(sys.argv) > 2 else float("inf")
me = {"worker": "python-" + uuid.uuid4().hex[:6], "session": str(uuid.uuid4())}
offer = {"cpu": 1, "memoryMib": "512", "runtimes": ["exec"]}

def call(method, **fields):
    request = urllib.request.Request(server + "/isobar.v1.WorkerService/" + method,
                                     json.dumps({**me, **fields}).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=60))

def extend(lease):  # true: the attempt may start, or go on
    return call("Extend", leases=[lease])["results"][0].get("confirmed", False)

def run(task, lease):
    payload = base64.b64decode(task.get("payload", ""))
    until = time.monotonic() + float(task["timeout"].rstrip("s"))
    env = {**task.get("env", {}), "PATH": "/usr/local/bin:/usr/bin:/bin", "ISOBAR_TASK_ID": task["taskId"],
           "ISOBAR_ATTEMPT": task["attempt"], "TRACEPARENT": task.get("traceparent", "")}
    process = subprocess.Popen(task["variant"]["command"], env=env, stdin=-1, stdout=-1, stderr=-1)
    while process.returncode is None:
        try:
            out, err = process.communicate(payload, timeout=2)
        except subprocess.TimeoutExpired:
            payload = None  # it has been given
            if not extend(lease) or time.monotonic() > until:
                process.kill()
    status = {0: "done", 75: "retry", -9: "timeout"}.get(process.returncode, "failed")
    outcome = {"status": status, "exitCode": process.returncode, "stderrTail": base64.b64encode(err[-4096:]).decode(),
               "result": base64.b64encode(out if status == "done" else b"").decode()}
    answer = call("Complete" if status == "done" else "Fail", lease=lease, outcome=outcome)
    print(task["taskId"], status, answer["verdict"], flush=True)

while left > 0:
    for task in call("Lease", requestId=str(uuid.uuid4()), offer=offer, wait="10s").get("assignments", []):
        lease, left = {"taskId": task["taskId"], "attempt": task["attempt"]}, left - 1
        if extend(lease):
            run(task, lease)
