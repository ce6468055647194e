import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.CountDownLatch;

/** Hears of freezes and resumes from tell-app. Copy it into your program; README.md says what is in the files. */
public final class Told {
    /** Called on a thread of its own. */
    public interface Listener {
        /** Before a freeze, which waits for it. */
        void freezing(Map<String, String> facts) throws InterruptedException;

        /** After a freeze: on this host as before, or resumed; as a clone if the job has another name than when it was frozen. */
        void running(Map<String, String> facts, boolean resumed, boolean clone);
    }

    private static final long PACE_MILLIS = 50;

    private final Path directory;
    private final Listener listener;
    private String known;
    private String frozenAs;

    public Told(Listener listener) throws IOException {
        this.directory = Path.of(System.getenv("TELL_APP_DIR"));
        this.listener = listener;
        this.known = read().getOrDefault("id", "");
        heard();
        var thread = new Thread(this::listen, "told");
        thread.setDaemon(true);
        thread.start();
    }

    private Map<String, String> read() throws IOException {
        var facts = new HashMap<String, String>();
        try {
            for (var line : Files.readAllLines(directory.resolve("state"))) {
                var pair = line.split("=", 2);
                facts.put(pair[0], pair[1]);
            }
        } catch (NoSuchFileException another) {
            // Another host, before anything was told there.
        }
        return facts;
    }

    private void heard() throws IOException {
        Files.createDirectories(directory);
        var prepared = directory.resolve("heard.new");
        Files.writeString(prepared, known);
        Files.move(prepared, directory.resolve("heard"), StandardCopyOption.ATOMIC_MOVE);
    }

    private void listen() {
        try {
            for (;; Thread.sleep(PACE_MILLIS)) {
                var facts = read();
                if (facts.isEmpty() || facts.get("id").equals(known)) {
                    continue;
                }
                known = facts.get("id");
                if (facts.get("moment").equals("before-freeze")) {
                    frozenAs = facts.get("job");
                    listener.freezing(facts);
                } else {
                    var resumed = facts.get("moment").equals("after-resume");
                    listener.running(facts, resumed, frozenAs != null && !frozenAs.equals(facts.get("job")));
                }
                heard();
            }
        } catch (IOException | InterruptedException error) {
            // Nobody is waited for in vain for long: the time for the program before a freeze is limited.
            throw new IllegalStateException("freezes and resumes are not heard of any more", error);
        }
    }

    public static void main(String[] arguments) throws Exception {
        new Told(new Listener() {
            @Override
            public void freezing(Map<String, String> facts) throws InterruptedException {
                // Here an app would finish what must not be torn, drop caches, and close connections.
                Thread.sleep(300);
                System.out.println("quiet");
            }

            @Override
            public void running(Map<String, String> facts, boolean resumed, boolean clone) {
                if (!resumed) {
                    System.out.println("thawed");
                    return;
                }
                // Here it would seed its random numbers anew, renew credentials, and connect again.
                var whose = clone ? "a clone" : "the same job";
                System.out.println("resumed generation " + facts.get("generation") + " on " + facts.get("host") + " as " + whose);
            }
        });
        System.out.println("ready");
        new CountDownLatch(1).await();
    }
}
