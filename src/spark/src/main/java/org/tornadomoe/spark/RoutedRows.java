package org.tornadomoe.spark;

import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.RowFactory;
import org.tornadomoe.kernel.ChosenExperts;

/**
 * Routes rows (id, hidden state) and yields what is sent to the owners of their experts: (id, owner, number of the
 * row's owners, {@link SentToken}), one for each owner, in ascending order of owners.
 */
final class RoutedRows extends RowsInBatches {
    /** The number of rows routed together. */
    private static final int BATCH = 64;

    private final TokenRouter router;
    private final int owners;
    private final boolean int8;

    RoutedRows(Iterator<Row> rows, TokenRouter router, ExpertParallelScorer plan) {
        super(rows);
        this.router = router;
        owners = plan.owners();
        int8 = router.quantizesTokens(plan.scorer().scheme());
    }

    @Override
    void more() {
        int h = router.hiddenDim();
        List<Object> ids = new ArrayList<>(BATCH);
        float[] hidden = new float[BATCH * h];
        while (ids.size() < BATCH && rows.hasNext()) {
            Row row = rows.next();
            if (row.isNullAt(0)) {
                throw new IllegalArgumentException("id: expected a value in each row, got null");
            }
            if (!row.isNullAt(1)) {
                ScoredRows.fill(row, 1, hidden, ids.size() * h, h);
                ids.add(row.get(0));
            }
        }
        if (ids.isEmpty()) {
            return;
        }
        ChosenExperts routing = router.route(hidden, ids.size());
        for (int m = 0; m < ids.size(); m++) {
            send(ids.get(m), SentToken.hidden(hidden, m * h, h, int8), routing, m);
        }
    }

    private void send(Object id, byte[] hidden, ChosenExperts routing, int m) {
        int pairs = routing.topK();
        int[] count = new int[owners];
        int[][] experts = new int[owners][];
        float[][] weights = new float[owners][];
        int of = 0;
        for (int p = m * pairs; p < (m + 1) * pairs; p++) {
            int owner = router.ownerOf(routing.ids()[p]);
            if (count[owner] == 0) {
                experts[owner] = new int[pairs];
                weights[owner] = new float[pairs];
                of++;
            }
            experts[owner][count[owner]] = router.numberThere(routing.ids()[p]);
            weights[owner][count[owner]++] = routing.weights()[p];
        }
        for (int owner = 0; owner < owners; owner++) {
            if (count[owner] > 0) {
                byte[] sent = SentToken.toBytes(experts[owner], weights[owner], count[owner], hidden);
                ready(RowFactory.create(id, owner, of, sent));
            }
        }
    }
}
