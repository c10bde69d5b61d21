package org.tornadomoe.reference;

/**
 * int8 activations with a scale a row, or a scale for every group of columns of a row.
 *
 * @param values [rows, width]
 * @param scales [rows], or [rows, groups]; where one scale serves all it is repeated
 */
public record QuantizedTokens(byte[] values, float[] scales) {}
