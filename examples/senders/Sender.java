import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;

/**
 * Sends by JDBC. From the folder of this file:
 *
 * <pre>JDBC_DATABASE_URL='jdbc:postgresql://localhost/app?user=app&password=…' java -cp postgresql.jar Sender.java org_1 4200</pre>
 */
public class Sender {
    static void pay(Connection db, String organization, long amount) throws SQLException {
        db.setAutoCommit(false); // or each statement would be a transaction of its own
        try {
            long payment;
            try (PreparedStatement insert = db.prepareStatement("INSERT INTO payments (organization_id, amount) VALUES (?, ?) RETURNING id")) {
                insert.setString(1, organization);
                insert.setLong(2, amount);
                try (ResultSet row = insert.executeQuery()) {
                    row.next();
                    payment = row.getLong(1);
                }
            }
            // setString sends a varchar, which PostgreSQL takes for a jsonb only with the cast.
            try (PreparedStatement event = db.prepareStatement("INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES (?, ?, ?::jsonb)")) {
                event.setString(1, organization);
                event.setString(2, "payment.succeeded");
                event.setString(3, "{\"paymentId\": %d, \"amount\": %d, \"currency\": \"EUR\"}".formatted(payment, amount)); // texts need a JSON library
                event.executeUpdate();
            }
            try (PreparedStatement take = db.prepareStatement("UPDATE accounts SET balance = balance - ? WHERE organization_id = ? AND balance >= ?")) {
                take.setLong(1, amount);
                take.setString(2, organization);
                take.setLong(3, amount);
                if (take.executeUpdate() == 0) {
                    throw new IllegalStateException("the account has not enough");
                }
            }
            db.commit();
        } catch (SQLException | RuntimeException error) {
            db.rollback(); // the event goes with the payment
            throw error;
        }
    }

    public static void main(String[] args) throws SQLException {
        try (Connection db = DriverManager.getConnection(System.getenv("JDBC_DATABASE_URL"))) {
            pay(db, args[0], Long.parseLong(args[1]));
        }
    }
}
