// Standard output, which may be a full disk.
#ifndef GROUPNORM_TOOLS_OUTPUT_H
#define GROUPNORM_TOOLS_OUTPUT_H

namespace groupnorm::tools {

// Opens the standard descriptors that are closed, for what always fails: else the next file to be
// opened would have the number of one, and be written to by those who mean the other.
void occupy_standard_descriptors();

// Throws BadInput where something that was printed could not be written.
void flush_output();

}  // namespace groupnorm::tools

#endif
