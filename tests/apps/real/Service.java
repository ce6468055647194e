// A JVM HTTP service that counts, with a pool of threads, timers, and code that is compiled while it runs; see client.py.
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

public class Service {
    static final Map<String, AtomicLong> LANES = new ConcurrentHashMap<>();
    static final AtomicLong TICKS = new AtomicLong();
    static final long EXPECTED = work();

    /** Hot enough to be compiled; the same each time, whatever compiled it. */
    static long work() {
        long sum = 1;
        for (int i = 1; i < 200_000; i++) {
            sum = sum * 6364136223846793005L + i;
        }
        return sum;
    }

    public static void main(String[] arguments) throws Exception {
        for (int i = 0; i < 2000; i++) {
            work();
        }
        var timer = Executors.newScheduledThreadPool(2);
        timer.scheduleAtFixedRate(TICKS::incrementAndGet, 50, 50, TimeUnit.MILLISECONDS);
        var server = HttpServer.create(new InetSocketAddress("0.0.0.0", Integer.parseInt(arguments[0])), 0);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.createContext("/", exchange -> {
            var lane = LANES.computeIfAbsent(exchange.getRequestURI().getPath(), path -> new AtomicLong());
            var answer = work() == EXPECTED ? lane.incrementAndGet() + " " + TICKS : "the work went wrong";
            var bytes = answer.getBytes();
            exchange.sendResponseHeaders(200, bytes.length);
            exchange.getResponseBody().write(bytes);
            exchange.close();
        });
        server.start();
        System.out.println("ready");
    }
}
