//! The apps of docs/apps.md: what each of them is, how it is started, and how it is seen to be right. Nothing here is done;
//! `tests/apps.rs` does it.

/// An app, and what is asked of it on every host.
pub(crate) struct App {
    pub(crate) name: &'static str,
    /// How the table says what it does and what is looked at.
    pub(crate) seen: &'static str,
    /// It needs no more than the root file system of the other tests, and little time.
    pub(crate) quick: bool,
    /// A script that makes on the volume what the app needs, on another host and before all others; `/data` is the volume.
    pub(crate) setup: &'static str,
    pub(crate) launches: &'static [Launch],
    pub(crate) work: Work,
}

/// One way to start it. The first is that of its manual; others have a remedy for what stands in the way.
pub(crate) struct Launch {
    /// As the table says it.
    pub(crate) how: &'static str,
    /// A command line of the shell.
    pub(crate) command: &'static str,
    pub(crate) environment: &'static [(&'static str, &'static str)],
    /// The whole container runs as this one.
    pub(crate) user: u32,
}

pub(crate) enum Work {
    /// It serves `client.py`, which counts.
    Serves(Service),
    /// It writes the same to stdout whenever it is run, and ends.
    Ends {
        /// When it is far enough to be evicted on the host with the number `$STAGE`, which begins with 1.
        far_enough: Progress,
    },
}

pub(crate) struct Service {
    pub(crate) client: &'static str,
    pub(crate) port: u16,
    pub(crate) lanes: u32,
    /// How far each lane has to come on each host.
    pub(crate) counts: u64,
    pub(crate) next: Next,
    /// A script that succeeds on the first host when the app is ready.
    pub(crate) ready: &'static str,
    /// A script that has to succeed on every host; `$ADDRESS` is the host's.
    pub(crate) verify: &'static str,
}

/// What may follow a count that was acknowledged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The next number; once after an eviction the one after it, as one step may have been on its way.
    Number,
    /// A higher one, as not only the client makes it count.
    Higher,
}

pub(crate) enum Progress {
    Lines(usize),
    Script(&'static str),
}

const PLAIN: Launch = Launch {
    how: "",
    command: "",
    environment: &[],
    user: 0,
};

const SERVICE: Service = Service {
    client: "lines",
    port: 7000,
    lanes: 4,
    counts: 15,
    next: Next::Number,
    ready: "exec 3<> /dev/tcp/$ADDRESS/$PORT",
    verify: "true",
};

/// A user that every Debian has; the lowest one that is meant for servers.
const SERVER: u32 = 33;

pub(crate) const APPS: &[App] = &[
    App {
        name: "Redis 8",
        seen: "50,000 keys, append-only file, counters of 4 clients; all acknowledged writes, all keys, its cron",
        quick: false,
        setup: "",
        launches: &[Launch {
            how: "`redis-server --bind 0.0.0.0 --dir VOLUME --appendonly yes`",
            command: "exec redis-server --bind 0.0.0.0 --port 7000 --protected-mode no --dir /data --appendonly yes",
            ..PLAIN
        }],
        work: Work::Serves(Service {
            client: "redis",
            ready: "redis-cli -h $ADDRESS -p 7000 ping && \
                    seq 50000 | sed 's/.*/SET key:& value:&\\r/' | redis-cli -h $ADDRESS -p 7000 --pipe",
            verify: r#"test "$(redis-cli -h $ADDRESS -p 7000 eval "
                local n = 0
                for i = 1, 50000 do if redis.call('GET', 'key:' .. i) == 'value:' .. i then n = n + 1 end end
                return n" 0)" = 50000"#,
            ..SERVICE
        }),
    },
    App {
        name: "PostgreSQL 17",
        seen: "transactions of 4 clients, autovacuum; all acknowledged commits, `pg_amcheck`",
        quick: false,
        setup: "if [ $(id -u) = 0 ]; then chown www-data /data; as='setpriv --reuid www-data --regid www-data --clear-groups'; fi
            cd /data
            $as /usr/lib/postgresql/17/bin/initdb -D /data/db -U postgres -A trust --no-sync > /dev/null
            echo 'host all all all trust' >> /data/db/pg_hba.conf
            cat >> /data/db/postgresql.conf << END
listen_addresses = '*'
port = 7000
unix_socket_directories = '/data'
autovacuum_naptime = 1
autovacuum_vacuum_threshold = 1
autovacuum_vacuum_scale_factor = 0
END
            $as /usr/lib/postgresql/17/bin/postgres --single -D /data/db postgres > /dev/null << END
create table lanes (lane int primary key, count bigint);
insert into lanes select i, 0 from generate_series(0, 3) i;
create table filler as select i, md5(i::text) as digest from generate_series(1, 50000) i;
create index on filler (digest);
create view clock as select autovacuum_count as ticks from pg_stat_user_tables where relname = 'lanes';
create extension amcheck;
END",
        launches: &[
            Launch {
                how: "container as root, `setpriv --reuid postgres ... postgres -D VOLUME`",
                command: "exec setpriv --reuid www-data --regid www-data --clear-groups \
                          /usr/lib/postgresql/17/bin/postgres -D /data/db",
                ..PLAIN
            },
            Launch {
                how: "the same, and `dynamic_shared_memory_type = mmap`",
                command: "exec setpriv --reuid www-data --regid www-data --clear-groups \
                          /usr/lib/postgresql/17/bin/postgres -D /data/db -c dynamic_shared_memory_type=mmap",
                ..PLAIN
            },
            Launch {
                how: "container as the database's user",
                command: "exec /usr/lib/postgresql/17/bin/postgres -D /data/db",
                user: SERVER,
                ..PLAIN
            },
        ],
        work: Work::Serves(Service {
            client: "postgres",
            ready: "psql -h $ADDRESS -p 7000 -U postgres -c 'select 1'",
            verify: "/usr/lib/postgresql/17/bin/pg_amcheck -h $ADDRESS -p 7000 -U postgres --heapallindexed postgres",
            ..SERVICE
        }),
    },
    App {
        name: "MariaDB 11.8",
        seen: "transactions of 4 clients, an event each second; all acknowledged commits, `CHECK TABLE`",
        quick: false,
        setup: "mariadb-install-db --no-defaults --datadir=/data/db --user=root --auth-root-authentication-method=normal \
                --skip-test-db > /dev/null
            cat > /data/init.sql << END
CREATE DATABASE job;
CREATE USER job@'%';
GRANT ALL ON *.* TO job@'%';
CREATE TABLE job.lanes (lane INT PRIMARY KEY, count BIGINT);
INSERT INTO job.lanes VALUES (0, 0), (1, 0), (2, 0), (3, 0);
CREATE TABLE job.clock (ticks BIGINT);
INSERT INTO job.clock VALUES (0);
CREATE DEFINER = job@'%' EVENT job.tick ON SCHEDULE EVERY 1 SECOND DO UPDATE job.clock SET ticks = ticks + 1;
END",
        launches: &[
            Launch {
                how: "`mariadbd --datadir=VOLUME`",
                command: "exec mariadbd --no-defaults --datadir=/data/db --user=root --bind-address=0.0.0.0 --port=7000 \
                          --socket=/data/db.sock --event-scheduler=ON --init-file=/data/init.sql",
                ..PLAIN
            },
            Launch {
                how: "and `--innodb-use-native-aio=0`",
                command: "exec mariadbd --no-defaults --datadir=/data/db --user=root --bind-address=0.0.0.0 --port=7000 \
                          --socket=/data/db.sock --event-scheduler=ON --init-file=/data/init.sql --innodb-use-native-aio=0",
                ..PLAIN
            },
        ],
        work: Work::Serves(Service {
            client: "mariadb",
            ready: "mariadb -h $ADDRESS -P 7000 -u job -e 'SELECT ticks FROM job.clock'",
            verify: "mariadb -h $ADDRESS -P 7000 -u job -NBe 'CHECK TABLE job.lanes, job.clock' | \
                     { ! grep -v 'status[[:space:]]OK'; }",
            ..SERVICE
        }),
    },
    App {
        name: "SQLite 3 from Python, 5 writers",
        seen: "rollback journal on the volume; all acknowledged commits, `PRAGMA integrity_check`",
        quick: false,
        setup: "",
        launches: &[Launch {
            how: "as usual",
            command: "exec python3 /apps/real/service.py sqlite 7000",
            ..PLAIN
        }],
        work: Work::Serves(Service {
            verify: r#"test "$(python3 -c 'import sqlite3
print(sqlite3.connect("/data/job.db", timeout=20).execute("PRAGMA integrity_check").fetchone()[0])')" = ok"#,
            ..SERVICE
        }),
    },
    App {
        name: "nginx 1.26",
        seen: "status counters in the workers' shared memory, a file, keep-alive timers; counters never fall, the file is whole",
        quick: false,
        setup: r#"head -c 1000000 /dev/urandom > /data/file
            sha256sum < /data/file > /data/file.sum
            chmod -R a+rX /data
            for user in www-data root; do cat > /data/$user.conf << END
daemon off; worker_processes 2; pid /data/nginx.pid; error_log stderr; user $user;
events {}
http {
    access_log off;
    keepalive_timeout 1s;
    client_body_temp_path /data/body; proxy_temp_path /data/proxy; fastcgi_temp_path /data/fastcgi;
    uwsgi_temp_path /data/uwsgi; scgi_temp_path /data/scgi;
    server { listen 7000; root /data; location /status { stub_status; } }
}
END
done"#,
        launches: &[
            Launch {
                how: "container as root, workers as `user www-data;`",
                command: "exec nginx -c /data/www-data.conf",
                ..PLAIN
            },
            Launch {
                how: "workers as root: `user root;`",
                command: "exec nginx -c /data/root.conf",
                ..PLAIN
            },
            Launch {
                how: "container as www-data",
                command: "exec nginx -c /data/www-data.conf",
                user: SERVER,
                ..PLAIN
            },
        ],
        work: Work::Serves(Service {
            client: "nginx",
            lanes: 1,
            counts: 40,
            next: Next::Higher,
            verify: "python3 -c 'import sys, urllib.request
sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1]).read())' http://$ADDRESS:7000/file | sha256sum --check /data/file.sum",
            ..SERVICE
        }),
    },
    App {
        name: "memcached 1.6",
        seen: "counters of 4 clients, its clock",
        quick: false,
        setup: "",
        launches: &[Launch {
            how: "`memcached -u root -t 4`",
            command: "exec memcached -u root -l 0.0.0.0 -p 7000 -t 4",
            ..PLAIN
        }],
        work: Work::Serves(Service {
            client: "memcached",
            ..SERVICE
        }),
    },
    App {
        name: "Node 20, HTTP server",
        seen: "counters of 4 clients, timers, files read by the thread pool",
        quick: false,
        setup: r#"cat > /data/no_io_uring.c << END
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/syscall.h>
long syscall(long number, long a, long b, long c, long d, long e, long f) {
    static long (*next)(long, ...);
    if (number == SYS_io_uring_setup) { errno = ENOSYS; return -1; }
    if (!next) next = dlsym(RTLD_NEXT, "syscall");
    return next(number, a, b, c, d, e, f);
}
END
            gcc -shared -fPIC -O2 -o /data/no_io_uring.so /data/no_io_uring.c"#,
        launches: &[
            Launch {
                how: "`node server.js`",
                command: "exec node /apps/real/server.js 7000",
                ..PLAIN
            },
            Launch {
                how: "`UV_USE_IO_URING=0`",
                command: "exec node /apps/real/server.js 7000",
                environment: &[("UV_USE_IO_URING", "0")],
                ..PLAIN
            },
            Launch {
                how: "`LD_PRELOAD` of a library whose `io_uring_setup` answers ENOSYS",
                command: "export LD_PRELOAD=/data/no_io_uring.so; exec node /apps/real/server.js 7000",
                ..PLAIN
            },
        ],
        work: Work::Serves(Service {
            client: "http",
            ..SERVICE
        }),
    },
    App {
        name: "OpenJDK 21, HTTP service",
        seen: "counters of 4 clients, a pool of threads, timers, compiled code whose result is known",
        quick: false,
        setup: "javac -d /data /apps/real/Service.java",
        launches: &[
            Launch {
                how: "`java Service`",
                command: "exec java -cp /data Service 7000",
                ..PLAIN
            },
            Launch {
                how: "`java -XX:-UsePerfData Service`",
                command: "exec java -XX:-UsePerfData -cp /data Service 7000",
                ..PLAIN
            },
        ],
        work: Work::Serves(Service {
            client: "http",
            ..SERVICE
        }),
    },
    App {
        name: "Python 3.13, numpy training",
        seen: "the loss of each step, to the last digit",
        quick: false,
        setup: "",
        launches: &[Launch {
            how: "as usual",
            command: "exec python3 /apps/real/train.py 600",
            ..PLAIN
        }],
        work: Work::Ends {
            far_enough: Progress::Lines(30),
        },
    },
    App {
        name: "Python 3.13, asyncio server",
        seen: "counters of 4 clients, a task that sleeps",
        quick: true,
        setup: "",
        launches: &[Launch {
            how: "as usual",
            command: "exec python3 /apps/real/service.py asyncio 7000",
            ..PLAIN
        }],
        work: Work::Serves(SERVICE),
    },
    App {
        name: "Python 3.13, multiprocessing pool",
        seen: "every result",
        quick: false,
        setup: "",
        launches: &[Launch {
            how: "as usual",
            command: "exec python3 /apps/real/pool.py 4000",
            ..PLAIN
        }],
        work: Work::Ends {
            far_enough: Progress::Lines(80),
        },
    },
    App {
        name: "Jupyter kernel (ipykernel 7)",
        seen: "variables of 2 clients' notebooks, a task in its event loop",
        quick: false,
        setup: r#"cat > /data/kernel.json << END
{"transport": "tcp", "ip": "0.0.0.0", "key": "secret", "signature_scheme": "hmac-sha256",
 "shell_port": 7000, "iopub_port": 7001, "stdin_port": 7002, "control_port": 7003, "hb_port": 7004}
END"#,
        launches: &[
            Launch {
                how: "`python3 -m ipykernel_launcher`",
                command: "exec python3 -m ipykernel_launcher -f /data/kernel.json",
                ..PLAIN
            },
            Launch {
                how: "and `IPYTHONDIR` on the volume",
                command: "exec python3 -m ipykernel_launcher -f /data/kernel.json",
                environment: &[("IPYTHONDIR", "/data/ipython")],
                ..PLAIN
            },
        ],
        work: Work::Serves(Service {
            client: "kernel",
            lanes: 2,
            ..SERVICE
        }),
    },
    App {
        name: "Go 1.24, static HTTP service",
        seen: "counters of 4 clients, a ticker",
        quick: false,
        setup: "cd /data && GOCACHE=/tmp/go CGO_ENABLED=0 go build -o /data/service /apps/real/service.go",
        launches: &[
            Launch {
                how: "as usual",
                command: "exec /data/service 7000",
                ..PLAIN
            },
            Launch {
                how: "`GODEBUG=multipathtcp=0`",
                command: "exec /data/service 7000",
                environment: &[("GODEBUG", "multipathtcp=0")],
                ..PLAIN
            },
        ],
        work: Work::Serves(Service {
            client: "http",
            ..SERVICE
        }),
    },
    App {
        name: "busybox pipelines",
        seen: "every line, and the digest of what went through",
        quick: true,
        setup: "",
        launches: &[Launch {
            how: "as usual",
            // Some seven seconds, of which the trial takes four until the last eviction.
            command: "busybox seq 1 1000000 | busybox awk '{ s += $1 * 7; print s % 1000003 }' | busybox tee /data/copy \
                      | busybox sh -c 'while read n; do case $n in *77) echo $n;; esac; done'; busybox md5sum /data/copy",
            ..PLAIN
        }],
        work: Work::Ends {
            far_enough: Progress::Lines(600),
        },
    },
    App {
        name: "ffmpeg 7, x264 encode",
        seen: "the digest of the film",
        quick: false,
        setup: "",
        launches: &[Launch {
            how: "output on the volume",
            command: "ffmpeg -nostdin -loglevel error -f lavfi -i testsrc2=size=640x360:rate=30 -t 40 -c:v libx264 -threads 4 \
                      -fflags +bitexact -flags:v +bitexact -y /data/film.mkv; md5sum /data/film.mkv",
            ..PLAIN
        }],
        work: Work::Ends {
            far_enough: Progress::Script("test $(stat -c %s /data/film.mkv) -gt $((STAGE * 1000000))"),
        },
    },
    App {
        name: "make -j4 with gcc",
        seen: "what was built, to the byte, and what it prints",
        quick: false,
        setup: r#"mkdir /data/tmp
            for i in $(seq 60); do
                { echo '#include <math.h>'
                  for j in $(seq 60); do echo "double f${i}_$j(double x) { for (int i = 0; i < $j; i++) x = sin(x * $i) + $j; return x; }"; done
                } > /data/part$i.c
            done
            { for i in $(seq 60); do echo "double f${i}_7(double);"; done
              echo '#include <stdio.h>'
              echo 'int main(void) { double x = 0;'
              for i in $(seq 60); do echo "x += f${i}_7($i);"; done
              echo 'printf("%.17g\n", x); }'
            } > /data/main.c
            printf 'CFLAGS = -O2\nLDLIBS = -lm\nmain: main.o %s\n' "$(seq -f 'part%.0f.o' -s ' ' 60)" > /data/Makefile"#,
        launches: &[
            Launch {
                how: "sources on the volume",
                command: "make -s -j4 -C /data main && /data/main && md5sum /data/main",
                ..PLAIN
            },
            Launch {
                how: "and `TMPDIR` on the volume",
                command: "make -s -j4 -C /data main && /data/main && md5sum /data/main",
                environment: &[("TMPDIR", "/data/tmp")],
                ..PLAIN
            },
        ],
        work: Work::Ends {
            far_enough: Progress::Script("test $(ls /data/*.o | wc -l) -ge $((STAGE * 12))"),
        },
    },
    App {
        name: "GNU screen 4.9 with bash",
        seen: "a variable of the shell, by what is typed and shown; a loop in another window",
        quick: false,
        setup: "mkdir -m 700 /data/screen",
        launches: &[
            Launch {
                how: "`screen -D -m`",
                command: "exec screen -D -m -S job bash --norc",
                environment: TERMINAL,
                ..PLAIN
            },
            Launch {
                how: "and `SCREENDIR` on the volume",
                command: "exec screen -D -m -S job bash --norc",
                environment: &[("TERM", "xterm"), ("LC_ALL", "C"), ("SCREENDIR", "/data/screen")],
                ..PLAIN
            },
        ],
        work: Work::Serves(Service {
            client: "screen",
            lanes: 1,
            ready: "test -s /data/ticks || { screen -S job -X screen bash -c \"$LOOP\"; sleep 1; test -s /data/ticks; }",
            ..SERVICE
        }),
    },
    App {
        name: "tmux 3.5 with bash",
        seen: "the same",
        quick: false,
        setup: r#"cat > /data/tmux.conf << END
new-session -d -s job -x 200 -y 50 'bash --norc'
new-window -d -t job 'bash -c "\$LOOP"'
END"#,
        launches: &[
            Launch {
                how: "`tmux -D`",
                command: "exec tmux -D -f /data/tmux.conf",
                environment: TERMINAL,
                ..PLAIN
            },
            Launch {
                how: "and `TMUX_TMPDIR` on the volume",
                command: "exec tmux -D -f /data/tmux.conf",
                environment: &[("TERM", "xterm"), ("LC_ALL", "C"), ("TMUX_TMPDIR", "/data")],
                ..PLAIN
            },
        ],
        work: Work::Serves(Service {
            client: "tmux",
            lanes: 1,
            // The server reads its file when the first client comes.
            ready: "tmux has-session -t job && test -s /data/ticks",
            ..SERVICE
        }),
    },
    App {
        name: "500 processes",
        seen: "what went round in a ring of pipes, each time",
        quick: false,
        setup: "",
        launches: &[Launch {
            how: "as usual",
            command: "ulimit -n 2048; exec python3 /apps/real/ring.py 500 400",
            ..PLAIN
        }],
        work: Work::Ends {
            far_enough: Progress::Lines(50),
        },
    },
    App {
        name: "4 GiB of memory",
        seen: "the digest of each of 4,096 blocks of random bytes, again and again",
        quick: false,
        setup: "",
        launches: &[Launch {
            how: "as usual",
            command: "exec python3 /apps/real/large.py 4096 10",
            ..PLAIN
        }],
        work: Work::Ends {
            far_enough: Progress::Lines(2),
        },
    },
];

const TERMINAL: &[(&str, &str)] = &[("TERM", "xterm"), ("LC_ALL", "C")];
