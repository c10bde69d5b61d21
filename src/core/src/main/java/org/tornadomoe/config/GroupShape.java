package org.tornadomoe.config;

/**
 * The rows and columns that share one scale; -1 means all of them.
 *
 * @param row -1 or positive; 0 in a block shape that isn't blocked along the rows
 * @param col -1 or positive
 */
public record GroupShape(int row, int col) {
    public static final GroupShape PER_TENSOR = new GroupShape(-1, -1);
    public static final GroupShape PER_TOKEN = new GroupShape(1, -1);
    public static final GroupShape PER_CHANNEL = new GroupShape(-1, 1);

    /** @throws IllegalArgumentException naming the number that is out of range */
    public GroupShape {
        if (row < -1) {
            throw new IllegalArgumentException("row: expected -1 (all) or more, got " + row);
        }
        if (col < -1 || col == 0) {
            throw new IllegalArgumentException("col: expected -1 (all) or a positive number, got " + col);
        }
    }

    public boolean isPerTensor() {
        return equals(PER_TENSOR);
    }

    public boolean isPerToken() {
        return equals(PER_TOKEN);
    }

    public boolean isPerChannel() {
        return equals(PER_CHANNEL);
    }

    /** Whether groups lie within a row. */
    public boolean isPerGroup() {
        return row == 1 && col >= 1;
    }

    /** {@code per_token}, or both numbers. */
    @Override
    public String toString() {
        return isPerTensor()
                ? "per_tensor"
                : isPerToken()
                        ? "per_token"
                        : isPerChannel() ? "per_channel" : "GroupShape(row=" + row + ", col=" + col + ")";
    }
}
