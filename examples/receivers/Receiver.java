import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Base64;
import java.util.List;
import java.util.concurrent.Executors;
import java.util.stream.Stream;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

/**
 * A receiver with the JDK's server, and a table in PostgreSQL. From the root of the repository:
 *
 * <pre>WEBHOOK_SECRETS=whsec_… JDBC_DATABASE_URL='jdbc:postgresql://localhost/app?user=app&password=…' \
 * java -cp postgresql.jar examples/receivers/Receiver.java</pre>
 */
public class Receiver {
    static final List<String> SECRETS = Stream.of(System.getenv().getOrDefault("WEBHOOK_SECRETS", "").split(","))
        .filter(secret -> !secret.isEmpty()).toList(); // during a rotation: the old and the new one
    static final int MAX_BODY = 1 << 20; // bytes; walhook sends 256 KiB of payload at most, and little around it
    static final long TOLERANCE = 300; // seconds that webhook-timestamp may be off
    // work_at is when to work on it; null: done. Keep what is done for 30 days: so long walhook can send it again.
    static final String TABLE = "CREATE TABLE IF NOT EXISTS received_webhooks (delivery_id text PRIMARY KEY, body text NOT NULL, "
        + "received_at timestamptz NOT NULL DEFAULT now(), work_at timestamptz DEFAULT now())";

    /** The key of Standard Webhooks: strip whsec_ and decode base64. A secret that is not base64 is its own key. */
    static byte[] standardKey(String secret) {
        String text = secret.startsWith("whsec_") ? secret.substring("whsec_".length()) : secret;
        boolean base64 = text.matches("(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?");
        return !text.isEmpty() && base64 ? Base64.getDecoder().decode(text) : secret.getBytes(StandardCharsets.UTF_8);
    }

    static boolean verified(String id, String sent, String signatures, byte[] body) throws GeneralSecurityException {
        if (id == null || sent == null || signatures == null || !sent.matches("[0-9]{1,12}")
            || Math.abs(System.currentTimeMillis() / 1000 - Long.parseLong(sent)) > TOLERANCE) {
            return false;
        }
        for (String secret : SECRETS) {
            Mac mac = Mac.getInstance("HmacSHA256");
            mac.init(new SecretKeySpec(standardKey(secret), "HmacSHA256"));
            mac.update((id + "." + sent + ".").getBytes(StandardCharsets.UTF_8));
            byte[] want = ("v1," + Base64.getEncoder().encodeToString(mac.doFinal(body))).getBytes(StandardCharsets.UTF_8);
            for (String given : signatures.split(" ")) {
                if (MessageDigest.isEqual(given.getBytes(StandardCharsets.UTF_8), want)) { // in constant time
                    return true;
                }
            }
        }
        return false;
    }

    static Connection connect() throws SQLException {
        return DriverManager.getConnection(System.getenv("JDBC_DATABASE_URL")); // a pool, in an application that has one
    }

    static int receive(HttpExchange request) throws IOException, GeneralSecurityException, SQLException {
        byte[] body = request.getRequestBody().readNBytes(MAX_BODY + 1); // the raw bytes: parsing and printing would change them
        if (body.length > MAX_BODY) {
            return 413;
        }
        var headers = request.getRequestHeaders();
        String id = headers.getFirst("webhook-id"); // the delivery's id, which is signed, unlike X-Webhook-Delivery-ID
        if (!verified(id, headers.getFirst("webhook-timestamp"), headers.getFirst("webhook-signature"), body)) {
            return 401;
        }
        try (Connection db = connect();
             PreparedStatement insert = db.prepareStatement("INSERT INTO received_webhooks (delivery_id, body) VALUES (?, ?) ON CONFLICT DO NOTHING")) {
            insert.setString(1, id);
            insert.setString(2, new String(body, StandardCharsets.UTF_8));
            insert.executeUpdate();
        }
        return 204;
    }

    static void work(String event, String organization, String data) throws InterruptedException {
        String takes = System.getenv("WORK_SECONDS");
        Thread.sleep(takes == null ? 0 : 1000 * Long.parseLong(takes)); // yours takes its time here
        System.out.println("received " + event + " of " + organization + ": " + data);
    }

    /** The work and that it is done are committed together: what it writes by db is written once, whatever crashes. */
    static boolean workOnOne(Connection db) throws SQLException {
        // The JDK has no parser for JSON, so PostgreSQL reads it.
        String due = "SELECT delivery_id, body::json ->> 'event', body::json ->> 'organizationId', body::json ->> 'data' "
            + "FROM received_webhooks WHERE work_at <= now() ORDER BY work_at LIMIT 1 FOR UPDATE SKIP LOCKED";
        try (Statement select = db.createStatement(); ResultSet row = select.executeQuery(due)) {
            boolean found = row.next();
            if (found) {
                String id = row.getString(1);
                try {
                    work(row.getString(2), row.getString(3), row.getString(4));
                    workAgain(db, id, null);
                } catch (Exception error) {
                    error.printStackTrace();
                    db.rollback();
                    workAgain(db, id, "1 minute"); // meanwhile the others
                }
            }
            db.commit();
            return found;
        }
    }

    static void workAgain(Connection db, String id, String in) throws SQLException {
        try (PreparedStatement update = db.prepareStatement("UPDATE received_webhooks SET work_at = now() + ?::interval WHERE delivery_id = ?")) {
            update.setString(1, in);
            update.setString(2, id);
            update.executeUpdate();
        }
    }

    static void workOff() {
        try (Connection db = connect()) {
            db.setAutoCommit(false);
            for (;;) {
                if (!workOnOne(db)) {
                    Thread.sleep(200);
                }
            }
        } catch (SQLException | InterruptedException error) {
            error.printStackTrace();
            System.exit(1); // whoever starts this process starts it again
        }
    }

    public static void main(String[] args) throws IOException, SQLException {
        if (SECRETS.isEmpty()) {
            System.err.println("set WEBHOOK_SECRETS to the secret that webhook_create_endpoint returned");
            System.exit(2);
        }
        System.setProperty("sun.net.httpserver.maxReqTime", "60"); // seconds that a request may take to arrive; for ever otherwise
        try (Connection db = connect(); Statement statement = db.createStatement()) {
            statement.execute(TABLE);
        }
        new Thread(Receiver::workOff).start();
        String port = System.getenv("PORT");
        HttpServer server = HttpServer.create(new InetSocketAddress(port == null ? 3000 : Integer.parseInt(port)), 0);
        server.setExecutor(Executors.newCachedThreadPool()); // of a fixed number, requests that do not go on arriving would keep all
        server.createContext("/", request -> {
            int status = 500;
            try {
                status = receive(request);
            } catch (GeneralSecurityException | SQLException error) {
                error.printStackTrace(); // and walhook tries again
            }
            request.sendResponseHeaders(status, -1);
            request.close();
        });
        server.start();
    }
}
